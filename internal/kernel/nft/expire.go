package nft

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/braidnet/braid/internal/desired"
	"golang.org/x/sys/unix"
)

// expireAfter is what is left to an element that is told to expire. The kernel counts in ticks of up to 10 ms, of which
// this is the first.
const expireAfter = time.Millisecond

// CanExpire tells whether the kernel takes desired.NFTExpireElement, which it does since Linux 6.12. An older one changes
// nothing, and says so by no error.
var CanExpire = sync.OnceValue(func() bool {
	var u unix.Utsname
	return unix.Uname(&u) == nil && expires(unix.ByteSliceToString(u.Release[:]))
})

// expires reads a release as uname prints it, "6.12.48-generic".
func expires(release string) bool {
	var major, minor int
	n, _ := fmt.Sscanf(release, "%d.%d", &major, &minor)
	return n == 2 && (major > 6 || major == 6 && minor >= 12)
}

// Elements lists the elements of all sets of a table that are not dynamic: none when there is no such table. Unlike Read
// it says nothing about the rest of the table, and costs a fraction. It does not start again when something else
// changes meanwhile.
func (c *Conn) Elements(family desired.NFTFamily, table string) (list []desired.NFTElement, err error) {
	sets, err := c.sets(family, table)
	if err == nil {
		list, err = c.inSets(family, table, sets)
	}
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil && !errors.Is(err, errChanged) {
		return nil, fmt.Errorf("list the elements of table %s %s: %w", family, table, err)
	}
	return list, nil
}
