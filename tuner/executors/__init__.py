"""Where evaluations run: in this process, or on long-lived Ray workers. Both pass the same contract tests."""
