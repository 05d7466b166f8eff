"""The specifications that are shipped. Rule: data only, one YAML file each; analyzer.spec reads them."""
