"""`python -m tailrun …` is `tailrun …`."""

from tailrun.cli import main

if __name__ == "__main__":
    main()
