"""Quality: row rules, duplicates and contamination."""
