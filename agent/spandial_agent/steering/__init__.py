"""Rates that follow what is counted: throughputs, budgets, quotas."""
