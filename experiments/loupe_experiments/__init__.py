"""The experiment that shows what the parts are worth: its rows, runs, table and report."""
