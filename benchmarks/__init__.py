"""What is timed, against whom and how; see benchmarks/README.md."""
