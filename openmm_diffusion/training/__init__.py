"""Lightning modules and the loop around them. Knows no molecule's energy: that is handed in from above."""
