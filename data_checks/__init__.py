"""Great Expectations: the data contract as a suite, its report, the quarantine."""
