"""Published files of judged data, mapped into our formats."""
