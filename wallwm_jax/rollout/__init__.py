"""Event mode in closed loop: planner, imagination, action, execution."""
