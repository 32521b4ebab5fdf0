"""The served specification of `/v1`, held against what the listener does, by schemathesis."""
