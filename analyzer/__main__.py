"""`python -m analyzer` is `rke2-flows`. Rule: starts the command line and knows nothing else."""

from analyzer.cli import main

if __name__ == "__main__":
    main()
