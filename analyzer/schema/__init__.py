"""The JSON Schema of the JSON document. Rule: data only; analyzer.documents reads it."""
