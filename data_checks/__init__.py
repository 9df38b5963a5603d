"""Data checks with Great Expectations: the data contract as a suite, the report, the quarantine and Data Docs."""
