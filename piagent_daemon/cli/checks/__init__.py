"""What only `piagent doctor` looks at: the broker, this machine, and model servers of its own asking."""
