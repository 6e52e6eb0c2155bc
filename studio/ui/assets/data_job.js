// One bar: value = JSON {job, title, text, percent, stopping}, "" while nothing runs.
const q = (selector) => element.querySelector(selector);
let job = '';
function show() {
  let told = null;
  try { told = props.value ? JSON.parse(props.value) : null; } catch (error) { console.info('no bar: ' + error); }
  q('.job').hidden = !told;
  job = told ? told.job : '';
  if (!told) return;
  q('.job-title').textContent = told.title;
  q('.job-text').textContent = told.stopping ? 'Cancelling' : told.text;
  const bar = q('.fetchbar'), known = told.percent !== null;
  q('.job-share').textContent = known ? Math.round(told.percent) + ' %' : '';
  bar.dataset.busy = known ? 'no' : 'yes';
  q('.fetchbar i').style.width = (known ? told.percent : 30) + '%';
  if (known) bar.setAttribute('aria-valuenow', String(told.percent)); else bar.removeAttribute('aria-valuenow');
  bar.setAttribute('aria-valuetext', told.text || told.title);
  q('.job-cancel').disabled = told.stopping;
}
q('.job-cancel').addEventListener('click', () => { if (job) trigger('cancel', {job}); q('.job-cancel').disabled = true; });
watch('value', show);
show();
