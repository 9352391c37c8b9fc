// How English counts.

const number = new Intl.NumberFormat('en');
const plural = new Intl.PluralRules('en');

export const count = (n: number, one: string, other: string) => `${number.format(n)} ${plural.select(n) === 'one' ? one : other}`;
