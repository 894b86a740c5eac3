"""Kibana's saved objects, generated from the field list of the documents. Pure: nothing here talks to anybody."""
