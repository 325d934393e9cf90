"""Where evaluations run: in this process, or on long-lived Ray workers. Both keep the same contract."""
