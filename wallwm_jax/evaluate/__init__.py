"""Action and video metrics, Task Progress, the HTML report."""
