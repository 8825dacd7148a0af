"""What notebooks draw: the files of finished stages shaped into arrays, tables and captions."""
