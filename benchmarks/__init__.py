"""What mmpoe claims about speed, each claim with the command that prints it."""
