"""What leaves a study: best.json for production, and the mirror in MLflow."""
