package fastpath

import (
	"context"
	"net"
	"net/netip"
	"slices"

	"github.com/coredns/coredns/core/dnsserver"
	"github.com/miekg/dns"
)

// waiting is a packet on its way to Server.ServeDNS.
type waiting struct {
	socket  *socket
	server  *dnsserver.Server
	packet  []byte
	control []byte
	peer    netip.AddrPort
}

// queue holds packets until they are started, first in, first out.
type queue struct {
	list  [maxWaiting]waiting
	first int
	n     int
}

func (q *queue) len() int { return q.n }

// push adds packet i of a reader, and reports false when there is no room or no server for it.
func (q *queue) push(r *reader, p *plan, i int) bool {
	if q.n == maxWaiting || p == nil {
		return false
	}
	q.list[(q.first+q.n)%maxWaiting] = waiting{socket: r.socket, server: p.server, packet: slices.Clone(r.socket.request(i)),
		control: slices.Clone(r.socket.control(i)), peer: r.socket.peer(i)}
	q.n++
	return true
}

// start hands up to n packets to goroutines of their own. Beyond the bound of a group they are dropped:
// so many are being asked of others already that an answer would come too late.
func (q *queue) start(n int, g *group) {
	for ; n > 0 && q.n > 0; n-- {
		w := q.list[q.first]
		q.list[q.first] = waiting{}
		q.first, q.n = (q.first+1)%maxWaiting, q.n-1
		if !g.pace.begin() {
			shed.Inc()
			continue
		}
		g.busy.Add(1)
		go func() {
			defer func() { g.pace.end(); g.busy.Done() }()
			w.serve()
		}()
	}
}

// serve does what the server of the DNS library does with a packet before it calls its handler: a
// header that makes no sense gets no answer, a message that is not taken gets an error.
func (w *waiting) serve() {
	if len(w.packet) < headerLen {
		return
	}
	action := dns.DefaultMsgAcceptFunc(dns.Header{
		Id: be16(w.packet), Bits: be16(w.packet[2:]), Qdcount: be16(w.packet[4:]),
		Ancount: be16(w.packet[6:]), Nscount: be16(w.packet[8:]), Arcount: be16(w.packet[10:]),
	})
	rw := &writer{waiting: w, remote: net.UDPAddrFromAddrPort(w.peer)}
	req := new(dns.Msg)
	switch action {
	case dns.MsgIgnore:
	case dns.MsgAccept:
		if err := req.Unpack(w.packet); err != nil {
			rw.refuse(req, action)
			return
		}
		if req.IsTsig() != nil {
			rw.tsig = dns.ErrSecret // there are no secrets, or nothing would be answered here
		}
		ctx := context.WithValue(context.Background(), dnsserver.Key{}, w.server)
		w.server.ServeDNS(context.WithValue(ctx, dnsserver.LoopKey{}, 0), rw, req)
	default:
		if req.Unpack(w.packet[:headerLen]) == nil {
			rw.refuse(req, action)
		}
	}
}

// refuse answers a message that is not taken, with as much of it as was read.
func (w *writer) refuse(m *dns.Msg, action dns.MsgAcceptAction) {
	opcode := m.Opcode
	m.SetRcodeFormatError(m)
	if action == dns.MsgRejectNotImplemented {
		m.Opcode, m.Rcode = opcode, dns.RcodeNotImplemented
	}
	m.Zero = false
	m.Answer, m.Ns, m.Extra = nil, nil, nil
	w.WriteMsg(m)
}

func be16(b []byte) uint16 { return uint16(b[0])<<8 | uint16(b[1]) }

// writer is the dns.ResponseWriter of one packet.
type writer struct {
	*waiting
	remote *net.UDPAddr
	tsig   error
	closed bool
}

func (w *writer) LocalAddr() net.Addr  { return w.socket.local() }
func (w *writer) RemoteAddr() net.Addr { return w.remote }

func (w *writer) WriteMsg(m *dns.Msg) error {
	b, err := m.Pack()
	if err != nil {
		return err
	}
	_, err = w.Write(b)
	return err
}

func (w *writer) Write(b []byte) (int, error) {
	if w.closed {
		return 0, net.ErrClosed
	}
	if err := w.socket.send(b, w.control, w.peer); err != nil {
		return 0, err
	}
	return len(b), nil
}

func (w *writer) Close() error        { w.closed = true; return nil }
func (w *writer) TsigStatus() error   { return w.tsig }
func (w *writer) TsigTimersOnly(bool) {}
func (w *writer) Hijack()             {}
