"""The guest's side: its XML, and the doors to what runs it."""
