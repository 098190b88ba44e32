package nftables

import (
	"crypto/sha256"
	"encoding/binary"
	"time"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/internal/desired/nft"
	"github.com/braidnet/braid/netagent/service"
	"github.com/google/nftables/expr"
)

// affinityLimit is how many clients are remembered at a time (some 40 MB of kernel memory). Those
// beyond are balanced as if there were no affinity, until others have timed out.
const affinityLimit = 1 << 18

// session is the number of a service port, the same for all its frontends and after a restart.
// Equal numbers of two ports cost their common clients the memory, never the right backend: what is remembered
// counts only if it is usable by the frontend at hand.
func session(f *service.Frontend) uint32 {
	h := sha256.Sum256([]byte(f.SessionName()))
	return binary.BigEndian.Uint32(h[:])
}

// registers of the rules below, counted from the first, for addresses of n registers (1 or 4). Side by
// side stand the keys of the set usable and of the memory; with IPv6 they fill all sixteen:
//
//	0 … n+1     frontend: address, protocol, port; without address for node ports, from n on
//	n+2 … 2n+2  backend: address, port
//	15-n … 15   client, session
//
// nft, when it lists a rule, does not know how long the value of a map is, and gives up (version 1.0.6) where that is
// part of a key. So the values of our maps begin with a register that does not matter. For nft the map
// ends there, and it prints what was loaded into the others before: "meta mark" for the session, "daddr . th dport"
// for the backend.
type registers struct{ front, backend, client, session uint32 }

func (f family) registers(node bool) registers {
	n := uint32(f.addr.Bytes) / 4
	r := registers{front: nft.Register0, backend: nft.Register0 + n + 2, client: nft.Register0 + 15 - n, session: nft.Register0 + 15}
	if node {
		r.front += n
	}
	return r
}

// remember are the rules of a chain with affinity.
//
// What is remembered is looked up again after it was written: of two connections that a client opens
// at once, on two processors, one writes and both read.
func (f family) remember(p, forgetful Pick) []desired.NFTRule {
	r := f.registers(p.node)
	usable := &expr.Lookup{SourceRegister: r.front, SetName: setFor(p.node, p.usable())}
	unusable := *usable
	unusable.Invert = true
	change := func(op, key, data uint32) *expr.Dynset {
		d := &expr.Dynset{SrcRegKey: key, SrcRegData: data, SetName: setAffinity, Operation: op}
		if op != dynsetDelete {
			d.Timeout = time.Duration(p.keep) * time.Second
		}
		return d
	}
	filling := r.backend - 1
	recall := append(f.recall(p, r), usable, change(dynsetUpdate, r.client, filling))
	recall = append(recall, f.translate(r.backend)...)
	stale := append(f.recall(p, r), &unusable, change(dynsetDelete, r.client, filling)) // the data counts for nothing, but a map asks for it
	return []desired.NFTRule{
		nft.Rule("the backend that the client had before", recall),
		nft.Rule("it left: forget it", stale),
		nft.Rule("remember one of the backends at random", f.draw(p, r), nft.Words{change(dynsetAdd, nft.Register0, r.backend)}),
		nft.Rule("the backend just remembered", recall),
		nft.Rule("no room to remember", nft.Goto(forgetful.chain())),
	}
}

// usable is the set of backends that the pick's list has. (One set for both lists would have six fields,
// and nft finds only five in the number that describes a set's key.)
func (p Pick) usable() string {
	if p.word == wordInside {
		return setUsableInside
	}
	return setUsable
}

// number loads the session's number, behind the frontend.
func (f family) number(p Pick, r registers) nft.Words {
	t := nft.KeyAt(r.front, f.front(p.node)...)
	t = append(t, nft.KeyAt(r.session, nft.Mark)...)
	return append(t, &expr.Lookup{SourceRegister: r.front, DestRegister: r.session - 1, IsDestRegSet: true, SetName: setFor(p.node, setSessions)})
}

// recall loads the remembered backend, behind the frontend.
func (f family) recall(p Pick, r registers) nft.Words {
	t := f.number(p, r)
	t = append(t, nft.KeyAt(r.client, f.source())...)
	t = append(t, nft.KeyAt(r.backend, f.destination(), nft.DestinationPort)...)
	t = append(t, &expr.Lookup{SourceRegister: r.client, DestRegister: r.backend - 1, IsDestRegSet: true, SetName: setAffinity})
	return append(t, nft.KeyAt(r.backend-1, nft.DestinationPort)...)
}

// draw loads the memory's key into registers 0 … n, and what it is to hold into those from r.backend on: the
// port that was asked for, as filling, and a backend at random.
func (f family) draw(p Pick, r registers) nft.Words {
	n := uint32(f.addr.Bytes) / 4
	t := f.number(p, r)
	t = append(t, nft.KeyAt(r.backend, draw(p.backends, p.firstSlot()))...)
	t = append(t, &expr.Lookup{SourceRegister: r.front, DestRegister: nft.Register0 + 1, IsDestRegSet: true, SetName: setFor(p.node, setSlots)})
	t = append(t, nft.KeyAt(nft.Register0, nft.DestinationPort)...)
	t = append(t, nft.KeyAt(r.backend+1, f.destination(), nft.DestinationPort)...)
	// Turned over twice, the bytes are as before, and elsewhere. (Operations on bits are shorter.)
	t = append(t,
		&expr.Byteorder{SourceRegister: nft.Register0, DestRegister: r.backend, Op: expr.ByteorderHton, Len: 4 * (n + 2), Size: 4},
		&expr.Byteorder{SourceRegister: r.backend, DestRegister: r.backend, Op: expr.ByteorderHton, Len: 4 * (n + 2), Size: 4})
	t = append(t, nft.KeyAt(nft.Register0, f.source())...)
	return append(t, &expr.Bitwise{SourceRegister: r.session, DestRegister: nft.Register0 + n, Len: 4, Mask: nft.Native(1<<32 - 1), Xor: nft.Native(0)})
}
