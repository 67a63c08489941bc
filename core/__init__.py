"""The ground floor: shared types, errors and the registry. Imports nothing of ours."""
