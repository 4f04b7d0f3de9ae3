"""From a prompt to finished steps: planner, supervisor, tools."""
