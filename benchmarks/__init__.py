"""One script per claim about speed or learning; results/ holds what they measured."""
