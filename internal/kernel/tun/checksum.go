package tun

import (
	"encoding/binary"
	"math/bits"
)

// Sums are ones' complement sums (RFC 1071) of 16-bit words in the machine's own byte order, kept in
// 64 bits until fold: section 2(B) of the RFC says why the order does not matter as long as the result
// is stored in the order it was summed in. A piece of odd length may only be the last one.

// sum adds the bytes of b to a sum.
func sum(b []byte, acc uint64) uint64 {
	var carry uint64
	for len(b) >= 64 {
		w := b[:64:64]
		acc, carry = bits.Add64(acc, binary.NativeEndian.Uint64(w[0:]), 0)
		acc, carry = bits.Add64(acc, binary.NativeEndian.Uint64(w[8:]), carry)
		acc, carry = bits.Add64(acc, binary.NativeEndian.Uint64(w[16:]), carry)
		acc, carry = bits.Add64(acc, binary.NativeEndian.Uint64(w[24:]), carry)
		acc, carry = bits.Add64(acc, binary.NativeEndian.Uint64(w[32:]), carry)
		acc, carry = bits.Add64(acc, binary.NativeEndian.Uint64(w[40:]), carry)
		acc, carry = bits.Add64(acc, binary.NativeEndian.Uint64(w[48:]), carry)
		acc, carry = bits.Add64(acc, binary.NativeEndian.Uint64(w[56:]), carry)
		acc += carry
		b = b[64:]
	}
	for len(b) >= 8 {
		acc, carry = bits.Add64(acc, binary.NativeEndian.Uint64(b), 0)
		acc += carry
		b = b[8:]
	}
	if len(b) > 0 {
		var tail [8]byte
		copy(tail[:], b)
		acc, carry = bits.Add64(acc, binary.NativeEndian.Uint64(tail[:]), 0)
		acc += carry
	}
	return acc
}

// fold reduces a sum to 16 bits. It is not complemented.
func fold(acc uint64) uint16 {
	acc = acc>>32 + acc&0xffffffff
	acc = acc>>32 + acc&0xffffffff
	acc = acc>>16 + acc&0xffff
	acc = acc>>16 + acc&0xffff
	return uint16(acc)
}

// putSum stores a folded sum, or its complement, as it was summed.
func putSum(b []byte, v uint16) { binary.NativeEndian.PutUint16(b, v) }

// pseudo is the sum of the pseudo-header (RFC 9293 section 3.1, RFC 8200 section 8.1) of an IP packet
// whose transport part has n bytes.
func pseudo(ip []byte, proto byte, n int) uint64 {
	var tail [8]byte
	binary.BigEndian.PutUint32(tail[:], uint32(n))
	tail[7] = proto
	acc := sum(tail[:], 0)
	if isIPv4(ip) {
		return sum(ip[12:20], acc)
	}
	return sum(ip[8:40], acc)
}

// setIPv4Checksum computes the checksum of an IPv4 header of n bytes.
func setIPv4Checksum(ip []byte, n int) {
	ip[10], ip[11] = 0, 0
	putSum(ip[10:], ^fold(sum(ip[:n], 0)))
}

// checksumOK reports whether the transport checksum of a packet is right; at is where that part begins.
func checksumOK(ip []byte, at int, proto byte) bool {
	return fold(sum(ip[at:], pseudo(ip, proto, len(ip)-at))) == 0xffff
}
