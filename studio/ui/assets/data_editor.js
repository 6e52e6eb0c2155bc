// The editor of one row: Save sends the texts of all boxes, of a conversation its turns, Discard
// closes it. Turns are added, removed and moved here; nothing is sent until Save.
function turnOf(item) {
  const extras = {};
  for (const box of item.querySelectorAll('textarea[data-key]')) extras[box.dataset.key] = box.value;
  return {before: item.dataset.before === '' ? null : Number(item.dataset.before),
    role: item.querySelector('.turn-role').value, text: item.querySelector('.turn-text').value, extras};
}
function partOf(box) {
  return box.matches('textarea') ? box.value : [...box.querySelectorAll('ol > .one-turn')].map(turnOf);
}
function number(list) {
  [...list.children].forEach((item, place) => {
    const name = 'turn ' + (place + 1);
    item.querySelector('.turn-no').textContent = 'T' + name.slice(1);
    item.querySelector('.turn-role').setAttribute('aria-label', 'Speaker of ' + name);
    item.querySelector('.turn-text').setAttribute('aria-label', 'Text of ' + name);
    for (const [act, word] of [['up', 'Move up: '], ['remove', 'Remove ']]) {
      item.querySelector(`[data-turn-act=${act}]`).setAttribute('aria-label', word + name);
    }
    item.querySelector('[data-turn-act=up]').disabled = place === 0;
  });
}
function changeTurns(button) {
  const box = button.closest('fieldset'), list = box.querySelector('ol'), item = button.closest('.one-turn');
  if (button.dataset.turnAct === 'add') {
    const added = box.querySelector('template').content.firstElementChild.cloneNode(true);
    const last = list.lastElementChild && list.lastElementChild.querySelector('.turn-role').value;
    added.querySelector('.turn-role').value = last === 'user' || last === 'tool' ? 'assistant' : 'user';
    list.append(added);
    added.querySelector('.turn-text').focus();
  } else if (button.dataset.turnAct === 'up') {
    if (item.previousElementSibling) item.previousElementSibling.before(item);
    button.focus();
  } else {
    const next = item.nextElementSibling || item.previousElementSibling;
    item.remove();
    (next ? next.querySelector('.turn-text') : box.querySelector('[data-turn-act=add]')).focus();
  }
  number(list);
}
element.addEventListener('submit', (event) => {
  event.preventDefault();
  const form = event.target.closest('form.editor');
  const parts = [...form.querySelectorAll('[data-place]')].map(partOf);
  trigger('save', {row: form.dataset.row, texts: JSON.stringify(parts)});
});
element.addEventListener('click', (event) => {
  if (event.target.closest('[data-act=close]')) trigger('close', {});
  const button = event.target.closest('button[data-turn-act]');
  if (button) changeTurns(button);
});
watch('value', () => {
  element.querySelectorAll('.edit-turns ol').forEach(number);
  const broken = element.querySelector('.one-turn:has(.warn) textarea') || element.querySelector('textarea');
  if (broken) broken.focus({preventScroll: true});
});
