"""What a night is made of: a verb is a task file, a noun is a folder beside it."""
