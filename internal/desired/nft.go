package desired

import (
	"fmt"

	"github.com/google/nftables/expr"
)

// Names by which the CNI plugin asks the kernel whether pods that nobody has told of are refused: the table of policy, and
// the maps in it from a pod's address to what isolates it, by direction.
const (
	PolicyTable   = "braid-policy"
	PolicyEgress  = "egress"
	PolicyIngress = "ingress"
)

// NFTFamily is the packet family of an nftables table, by the kernel's NFPROTO number.
type NFTFamily uint8

// Families of nftables tables.
const (
	NFTInet   NFTFamily = 1 // IPv4 and IPv6
	NFTIPv4   NFTFamily = 2
	NFTBridge NFTFamily = 7
	NFTIPv6   NFTFamily = 10
)

// String prints the word `nft` uses: "inet", "ip", "ip6" or "bridge".
func (f NFTFamily) String() string {
	switch f {
	case NFTInet:
		return "inet"
	case NFTIPv4:
		return "ip"
	case NFTIPv6:
		return "ip6"
	case NFTBridge:
		return "bridge"
	}
	return fmt.Sprintf("family %d", uint8(f))
}

// NFTTable is one table with its static parts. Chains may jump to each other in any order.
type NFTTable struct {
	Family  NFTFamily
	Name    string
	Comment string // at most 127 bytes
	// Owned keeps others from changing the table, a flush of the whole ruleset included, while the socket that made
	// it, or took it over with NFTOwnTable, is open. The table outlives the socket. Linux 6.9 or later.
	Owned  bool
	Sets   []NFTSet
	Chains []NFTChain
}

// NFTHook says where packets enter a base chain.
type NFTHook struct {
	Type     string // "filter" or "nat"
	Hook     uint32 // NF_INET_… number
	Priority int32
}

// NFTChain is a chain and its rules in order. Without a Hook it is reached by jumps only.
type NFTChain struct {
	Name  string
	Hook  *NFTHook
	Rules []NFTRule
}

// NFTRule is a list of expressions and the comment that `nft list` shows behind it.
type NFTRule struct {
	Comment string // at most 127 bytes
	Exprs   []expr.Any
}

// NFTType is a data type of set keys and values: what `nft` calls it, its number in the kernel's
// set description (6 bits), and the bytes a value takes before padding to four.
type NFTType struct {
	Name  string
	Magic uint32
	Bytes int
}

// Data types. Numbers are those of nft's datatype registry (include/datatype.h of nftables), which
// the kernel stores without looking at them.
var (
	NFTVerdict     = NFTType{"verdict", 1, 0}
	NFTIPv4Addr    = NFTType{"ipv4_addr", 7, 4}
	NFTIPv6Addr    = NFTType{"ipv6_addr", 8, 16}
	NFTEtherAddr   = NFTType{"ether_addr", 9, 6}
	NFTInetProto   = NFTType{"inet_proto", 12, 1}
	NFTInetService = NFTType{"inet_service", 13, 2}
	NFTMark        = NFTType{"mark", 19, 4}    // a number in the machine's byte order
	NFTIfName      = NFTType{"ifname", 41, 16} // padded with zeros
)

// Keys of expr.Ct for the destination address by which a connection began: NFT_CT_DST_IP and NFT_CT_DST_IP6. Programs
// that list rules know how long these are, other than that of expr.CtKeyDST.
const (
	CtDestinationIPv4 expr.CtKey = 20
	CtDestinationIPv6 expr.CtKey = 22
)

// NFTSet is a set, or a map when it has a Value type. Several Key types make a concatenation.
type NFTSet struct {
	Name     string
	Comment  string // at most 127 bytes
	Key      []NFTType
	Value    []NFTType // none: a set; NFTVerdict: a verdict map
	Interval bool      // elements are ranges of a single-type key
	Counter  bool      // each element counts the packets that it is found for, and their bytes
	Expiring bool      // elements stay until they are told to expire (NFTExpireElement) or are deleted
	Dynamic  int       // elements come by rules and go by their timeouts: how many there may be; 0: they come by NFTOps
}

// NFTElement is one element of a set or map. Key and Value are padded per field to four bytes, as
// registers hold them. Elements with equal Set and Key are the same element.
type NFTElement struct {
	Set     string
	Key     string // raw bytes; a string, so that elements can be compared and be map keys
	End     string // interval sets: the first key behind the range, "" when it reaches the last key
	Value   string // raw bytes of a data map
	Goto    string // verdict maps: the chain to continue in
	Comment string // at most 127 bytes
}

// NFTContents is what the kernel holds under a table's name.
type NFTContents struct {
	Comment  string
	Rules    map[string][]string // chain → the comments of its rules, in order
	Sets     map[string]bool
	Elements []NFTElement
}

// NFTVerb says what an NFTOp does.
type NFTVerb uint8

// What an NFTOp does.
const (
	NFTAddTable      NFTVerb = iota + 1 // Def, with its sets, chains and rules
	NFTDeleteTable                      // and all that is in it
	NFTAddChain                         // Chain with its rules
	NFTDeleteChain                      // Chain (only its name counts) with its rules
	NFTAddElement                       // Element
	NFTDeleteElement                    // Element (only its set and key count)
	NFTAddSet                           // Set
	NFTDeleteSet                        // Set (only its name counts)
	NFTFlushChain                       // take out all rules of Chain
	NFTExpireElement                    // Element (all of it) goes within milliseconds, and nobody waits for it; see nft.CanExpire
	NFTOwnTable                         // take over a table that was made as Owned and whose owner is gone
)

// NFTOp is one change of a table.
type NFTOp struct {
	Verb    NFTVerb
	Family  NFTFamily
	Table   string
	Join    bool // never in a later transaction than the operation before it
	Def     *NFTTable
	Chain   *NFTChain
	Set     *NFTSet
	Element *NFTElement
}

// String says what the operation does, for errors: "add element default/web to slots of table ip braid".
func (o NFTOp) String() string {
	table := fmt.Sprintf("table %s %s", o.Family, o.Table)
	switch o.Verb {
	case NFTAddTable:
		return "add " + table
	case NFTDeleteTable:
		return "delete " + table
	case NFTOwnTable:
		return "take over " + table
	case NFTAddChain:
		return fmt.Sprintf("add chain %s of %s", o.Chain.Name, table)
	case NFTDeleteChain:
		return fmt.Sprintf("delete chain %s of %s", o.Chain.Name, table)
	case NFTFlushChain:
		return fmt.Sprintf("flush chain %s of %s", o.Chain.Name, table)
	case NFTAddSet:
		return fmt.Sprintf("add set %s of %s", o.Set.Name, table)
	case NFTDeleteSet:
		return fmt.Sprintf("delete set %s of %s", o.Set.Name, table)
	case NFTAddElement:
		return fmt.Sprintf("add element %x (%s) to %s of %s", o.Element.Key, o.Element.Comment, o.Element.Set, table)
	case NFTExpireElement:
		return fmt.Sprintf("expire element %x (%s) in %s of %s", o.Element.Key, o.Element.Comment, o.Element.Set, table)
	case NFTDeleteElement:
		return fmt.Sprintf("delete element %x (%s) from %s of %s", o.Element.Key, o.Element.Comment, o.Element.Set, table)
	}
	return fmt.Sprintf("nftables verb %d on %s", o.Verb, table)
}
