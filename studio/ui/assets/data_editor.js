// The editor of one row: Save sends the texts of all boxes, Discard closes it.
element.addEventListener('submit', (event) => {
  event.preventDefault();
  const form = event.target.closest('form.editor');
  const texts = [...form.querySelectorAll('textarea')].map((box) => box.value);
  trigger('save', {row: form.dataset.row, texts: JSON.stringify(texts)});
});
element.addEventListener('click', (event) => { if (event.target.closest('[data-act=close]')) trigger('close', {}); });
watch('value', () => { const box = element.querySelector('textarea'); if (box) box.focus({preventScroll: true}); });
