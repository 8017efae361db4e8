"""Files of rows: every format, and one reading of them by every command."""
