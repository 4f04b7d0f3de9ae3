"""Write the small .xlsx that import-excel is tried with: `python make_xlsx.py report.xlsx`."""

from __future__ import annotations

import sys

from openpyxl import Workbook


def write(path: str) -> None:
    """Write a workbook of two sheets: a wide table, and a narrow one."""
    book = Workbook()
    wide = book.active
    wide.title = "MB Attributes"
    wide.append(["attribute", "Q1", "Q2", "Q3", "Q4"])
    for number, name in enumerate(("MB revenue", "MB margin", "MB orders")):
        wide.append([name, *(100 + 10 * number + quarter for quarter in range(4))])
    narrow = book.create_sheet("Values")
    narrow.append(["Attribute", "Quarter", "Value"])
    narrow.append(["MB churn", "Q1", 4.5])
    narrow.append(["MB churn", "Q2", "not known"])
    book.save(path)
    print(f"wrote {path}: 12 values in 'MB Attributes', 1 in 'Values'")


if __name__ == "__main__":
    write(sys.argv[1] if len(sys.argv) > 1 else "report.xlsx")
