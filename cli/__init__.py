"""The command line: typer talks, rich draws. Commands import what they use inside their function."""
