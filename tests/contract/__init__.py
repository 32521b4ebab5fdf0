"""The served specification of `/v1`, held against what the door does, by schemathesis."""
