"""Colours, type and spacing of the page. Fonts are those bundled with gradio: nothing is fetched.

The SemiBold file of IBM Plex Sans in gradio 6.31 lacks glyphs (letters fall back one by one), so
only 400 and 700 are used.
"""

from __future__ import annotations

import gradio as gr

PRIMARY, ACCENT = "#6366f1", "#14b8a6"

_COLOURS = {
    "body_background_fill": ("#f7f8fb", "#0b0e14"),
    "background_fill_primary": ("white", "#11151d"),
    "background_fill_secondary": ("#f7f8fb", "#0e1219"),
    "block_background_fill": ("white", "#11151d"),
    "block_border_color": ("#e6e9f0", "#1e2530"),
    "block_shadow": ("0 1px 2px rgba(15,23,42,.05)", "none"),
    "block_label_background_fill": ("white", "#11151d"),
    "block_label_text_color": ("*neutral_600", "*neutral_300"),
    "block_title_text_color": ("*neutral_800", "*neutral_100"),
    "block_info_text_color": ("#5b6678", "*neutral_400"),
    "body_text_color_subdued": ("#5b6678", "*neutral_400"),
    "input_background_fill": ("white", "#0b0f16"),
    "input_border_color": ("#d3d9e5", "#2a3342"),
    "input_border_color_focus": ("*primary_500", "*primary_400"),
    "input_shadow_focus": (
        "0 0 0 3px rgba(99,102,241,.2)", "0 0 0 3px rgba(129,140,248,.28)",
    ),
    "border_color_primary": ("#e6e9f0", "#1e2530"),
    "button_primary_background_fill": ("*primary_600", "*primary_600"),
    "button_primary_background_fill_hover": ("*primary_700", "*primary_700"),
    "button_primary_text_color": ("white", "white"),
    "button_secondary_background_fill": ("white", "#171c26"),
    "button_secondary_background_fill_hover": ("#f1f3f9", "#1f2633"),
    "button_secondary_border_color": ("#d3d9e5", "#2a3342"),
    "slider_color": ("*primary_600", "*primary_500"),
    "checkbox_label_background_fill": ("white", "#0b0f16"),
    "checkbox_label_background_fill_selected": ("*primary_50", "#1c2140"),
    "checkbox_label_border_color_selected": ("*primary_500", "*primary_400"),
    "checkbox_label_text_color_selected": ("*primary_800", "*primary_100"),
    "checkbox_background_color_selected": ("*primary_600", "*primary_600"),
    "link_text_color": ("*primary_700", "*primary_300"),
}  # fmt: skip

_PLAIN = {
    "block_border_width": "1px",
    "block_label_border_width": "0px",
    "block_title_text_weight": "700",
    "block_title_text_size": "*text_sm",
    "block_info_text_size": "*text_sm",
    "button_border_width": "1px",
    "button_large_text_weight": "700",
    "button_large_text_size": "*text_md",
    "button_transition": "background .15s, transform .05s",
    "input_border_width": "1px",  # the Base theme's 0 makes dropdowns invisible
    "input_border_width_dark": "1px",
}


def build_theme() -> gr.themes.Base:
    """The studio's theme, light and dark."""
    base = gr.themes.Base(
        primary_hue=gr.themes.colors.indigo,
        secondary_hue=gr.themes.colors.teal,
        neutral_hue=gr.themes.colors.slate,
        radius_size=gr.themes.sizes.radius_lg,
        spacing_size=gr.themes.sizes.spacing_md,
        text_size=gr.themes.sizes.text_md,
        font=[
            gr.themes.LocalFont("IBM Plex Sans", weights=(400, 700)), "system-ui", "sans-serif",
        ],
        font_mono=[
            gr.themes.LocalFont("IBM Plex Mono", weights=(400,)), "ui-monospace", "monospace",
        ],
    )  # fmt: skip
    both = {name: light for name, (light, _) in _COLOURS.items()}
    both.update({f"{name}_dark": dark for name, (_, dark) in _COLOURS.items()})
    return base.set(**both, **_PLAIN)
