"""What a POST is held to: steps, task types, projects, schedules, webhook addresses."""
