"""Send thousands of hostile requests to a real service, and check that it still works, never responds 500, and leaks nothing."""
