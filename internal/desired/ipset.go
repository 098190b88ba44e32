package desired

import (
	"fmt"
	"net/netip"
)

// IPSetType is a type of ipset, as the kernel calls it.
type IPSetType string

// Types of ipsets.
const (
	IPSetAddr     IPSetType = "hash:ip"      // single addresses
	IPSetNet      IPSetType = "hash:net"     // prefixes of 1 bit or more: the kernel has no place for 0
	IPSetAddrPort IPSetType = "hash:ip,port" // an address with a protocol and a port
)

// IPSet is a named set of the kernel's ipset. What it holds are members.
type IPSet struct {
	Name string // at most 31 bytes
	Type IPSetType
	IPv6 bool
}

// IPSetMember is what a set holds.
type IPSetMember struct {
	Prefix   netip.Prefix // masked; of all bits but for IPSetNet
	Protocol uint8        // IPSetAddrPort: number of the transport protocol
	Port     uint16
}

// String prints the member as the ipset tool does.
func (m IPSetMember) String() string {
	switch {
	case m.Protocol != 0:
		return fmt.Sprintf("%s,%d:%d", m.Prefix.Addr(), m.Protocol, m.Port)
	case m.Prefix.IsSingleIP():
		return m.Prefix.Addr().String()
	}
	return m.Prefix.String()
}

// IPSetVerb says what an IPSetOp does.
type IPSetVerb uint8

// Verbs. All may be repeated: what is there already, or gone already, is no error.
const (
	IPSetCreate IPSetVerb = iota
	IPSetAdd
	IPSetRemove
	IPSetDestroy // fails while a rule refers to the set
)

// String prints the verb for errors.
func (v IPSetVerb) String() string {
	return [...]string{"create", "add to", "remove from", "destroy"}[v]
}

// IPSetOp is one change of a set.
type IPSetOp struct {
	Verb    IPSetVerb
	Set     IPSet
	Members []IPSetMember // IPSetAdd and IPSetRemove
}
