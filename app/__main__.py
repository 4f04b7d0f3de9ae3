"""`python -m app …` is `tailrun …`."""

from app.cli import main

if __name__ == "__main__":
    main()
