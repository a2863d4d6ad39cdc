"""What a run is made with: recipes, their schema, YAML with places, which settings are TRL's."""
