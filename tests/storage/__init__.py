"""The log and the vote file, on a disk in memory that loses what it was not told to sync."""
