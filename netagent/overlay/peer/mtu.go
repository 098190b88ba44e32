package peer

import "fmt"

// MinIPv6MTU is what every link must carry to be used by IPv6, bytes (RFC 8200 section 5).
const MinIPv6MTU = 1280

// MTU returns the largest packet, in bytes, that fits whole into what a backend sends over every underlay of the
// list, and which of them makes it so. overhead is what a packet grows by over a family; what names
// the backend. The MTU is 0 for an empty list.
func MTU(list []Underlay, overhead func(is4 bool) int, what string) (mtu int, why string) {
	for _, u := range list {
		more := overhead(u.Addr.Is4())
		if n := u.MTU - more; mtu == 0 || n < mtu {
			mtu = n
			why = fmt.Sprintf("%s, less %d for %s over %s", u.Why, more, what, Family(u.Addr.Is4()))
		}
	}
	return mtu, why
}

// TooNarrow says that a device which is to carry IPv6 has less room than that needs.
func (s Self) TooNarrow(dev string, mtu int, why string) Note {
	return Note{Node: s.Name, Text: fmt.Sprintf("%s has room for packets of %d bytes only (%s), IPv6 needs %d: raise the MTU of the underlay",
		dev, mtu, why, MinIPv6MTU)}
}
