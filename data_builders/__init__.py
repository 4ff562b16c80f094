"""Builders of data sets: each module runs by itself and writes parquet with a manifest."""
