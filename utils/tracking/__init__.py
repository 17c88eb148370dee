"""MLflow: store, runs, history, ledger and registry."""
