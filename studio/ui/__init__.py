"""The page: gradio and plotly. Imports services and core; holds no truth of its own."""
