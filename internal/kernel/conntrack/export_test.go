package conntrack

import "golang.org/x/sys/unix"

// Messages counts the entries that the kernel sends for a filter.
func (c *Conn) Messages(f Filter) (n int, err error) {
	err = c.request(typeGet, unix.NLM_F_DUMP, f).execute(c, func([]byte) { n++ })
	return n, err
}
