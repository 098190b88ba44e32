package fastpath

import (
	"encoding/binary"

	"github.com/miekg/dns"

	"github.com/braidnet/braid/internal/names"
	"github.com/braidnet/braid/plugin/kubernetes"
)

// Bounds of what is answered here of names that have other names as their data. More of them would not
// fit a reply without compression.
const (
	maxPorts  = 24
	maxLabels = 64 // octets of a label with its length
)

// pointers makes the reply to a question for what an address leads back to.
func (r *reader) pointers(z *zone, out []byte) (reply []byte, whole int) {
	q := &r.query
	if q.typ != dns.TypePTR {
		return nil, 0
	}
	outcome, list := z.Pointers(q.name(), r.pointed)
	if outcome != kubernetes.Found || len(list) > maxPorts {
		return nil, 0
	}
	out = q.header(out, dns.RcodeSuccess, len(list), 0)
	owner, ttl, ok := q.packet[headerLen:q.nameEnd], z.answer.apply(z.TTL), true
	for _, p := range list {
		if len(out) > q.plain {
			return nil, 0
		}
		out = record(out, owner, dns.TypePTR, ttl, 0)
		from := len(out)
		out, ok = appendLabels(out, p.AppendLabels(r.scratch[:0]), ok)
		out, ok = appendLabels(out, p.Service.Name, ok)
		out, ok = appendLabels(out, p.Service.Namespace, ok)
		out = append(out, svc...)
		out, ok = appendLabels(out, z.primary, ok)
		out = append(out, 0)
		if length := len(out) - from; ok && length <= 255 {
			binary.BigEndian.PutUint16(out[from-2:], uint16(length))
			continue
		}
		return nil, 0
	}
	if len(out)+q.room() > min(q.size, q.plain) {
		return nil, 0
	}
	return q.finish(out), len(out)
}

var svc = []byte("\x03svc")

// port is one target of a question for ports.
type port struct {
	names.Target
	labels []byte // in front of the service's name
}

// ports makes the reply to a question for ports: a record for each port of each target, and the
// targets' addresses. Where no port has a number there is none.
func (r *reader) ports(z *zone, n names.Name, targets []names.Target, out []byte) (reply []byte, whole int, _ kubernetes.Outcome) {
	q := &r.query
	if len(targets) > maxPorts {
		return nil, 0, kubernetes.Unknown
	}
	var list [maxPorts]port
	scratch, count := r.scratch[:0], 0
	for _, t := range targets {
		if t.Port == 0 {
			continue
		}
		from := len(scratch)
		if scratch = t.AppendLabels(scratch); len(scratch) > len(r.scratch) {
			return nil, 0, kubernetes.Unknown // labels that no name can have
		}
		list[count] = port{t, scratch[from:]}
		count++
	}
	if count == 0 {
		return nil, 0, kubernetes.NoData
	}
	ports := list[:count]
	ttl, weight, ok := z.answer.apply(z.TTL), max(1, 100/len(targets)), true
	zone := q.packet[q.nameEnd-z.wireLen : q.nameEnd]
	target := func(out []byte, p port) []byte {
		out, ok = appendLabels(out, p.labels, ok)
		out, ok = appendLabels(out, n.Object, ok)
		out, ok = appendLabels(out, n.Namespace, ok)
		return append(append(out, svc...), zone...)
	}
	out = q.header(out, dns.RcodeSuccess, 0, 0)
	var extra [maxPorts]port
	nExtra := 0
	for i, p := range ports {
		if len(out) > q.plain {
			return nil, 0, kubernetes.Unknown
		}
		if !contains(ports[:i], func(o port) bool { return o.Port == p.Port && string(o.labels) == string(p.labels) }) {
			out[7]++
			out = record(out, q.packet[headerLen:q.nameEnd], dns.TypeSRV, ttl, 0)
			from := len(out)
			out = target(append(out, 0, 0, 0, byte(weight), byte(p.Port>>8), byte(p.Port)), p)
			binary.BigEndian.PutUint16(out[from-2:], uint16(len(out)-from))
		}
		if !contains(extra[:nExtra], func(o port) bool { return o.Addr == p.Addr && string(o.labels) == string(p.labels) }) {
			extra[nExtra] = p
			nExtra++
		}
	}
	if z.shuffled {
		shuffle(extra[:nExtra], r.rand)
	}
	for _, p := range extra[:nExtra] {
		typ, length := dns.TypeAAAA, 16
		if p.Addr.Is4() {
			typ, length = dns.TypeA, 4
		}
		if len(out) > q.plain {
			return nil, 0, kubernetes.Unknown
		}
		out[11]++
		out = appendAddr(record(target(out, p), nil, typ, ttl, length), p.Addr)
	}
	if !ok || len(out)+q.room() > min(q.size, q.plain) {
		return nil, 0, kubernetes.Unknown
	}
	return q.finish(out), len(out), kubernetes.Found
}

func contains(list []port, same func(port) bool) bool {
	for _, p := range list {
		if same(p) {
			return true
		}
	}
	return false
}

// appendLabels appends labels with dots between them in wire form, without the root's. It reports false,
// as ever after, for what is no plain name.
func appendLabels[S string | []byte](out []byte, labels S, ok bool) ([]byte, bool) {
	if len(labels) == 0 {
		return out, ok
	}
	at := len(out)
	out = append(out, 0)
	for i := range len(labels) {
		c := labels[i]
		if c != '.' {
			if lower[c] == 0 || len(out)-at > 63 {
				return out, false
			}
			out = append(out, c)
			continue
		}
		if len(out) == at+1 {
			return out, false
		}
		out[at] = byte(len(out) - at - 1)
		at = len(out)
		out = append(out, 0)
	}
	out[at] = byte(len(out) - at - 1)
	return out, ok && out[at] != 0
}
