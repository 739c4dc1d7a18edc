"""Plans which documents each row of a batch contains, from document lengths alone."""
