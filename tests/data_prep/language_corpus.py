"""Three sentences each of mathematical reasoning in many languages, for the tests of language identification."""

SENTENCES = {
    "en": (
        "We want to find all the positive integers that divide both numbers without leaving a remainder.",
        "Wait, I think that I made a mistake in the second step, so let me check it again.",
        "Suppose that the function is continuous on the closed interval and has no zero there.",
    ),
    "de": (
        "Wir suchen alle positiven ganzen Zahlen, die beide Zahlen ohne Rest teilen.",
        "Moment, ich glaube, im zweiten Schritt ist mir ein Fehler unterlaufen, also prüfe ich ihn noch einmal.",
        "Angenommen, die Funktion ist auf dem abgeschlossenen Intervall stetig und hat dort keine Nullstelle.",
    ),
    "fr": (
        "Nous cherchons tous les entiers positifs qui divisent les deux nombres sans laisser de reste.",
        "Attendez, je crois que j'ai fait une erreur à la deuxième étape, je vais donc vérifier encore une fois.",
        "Supposons que la fonction soit continue sur l'intervalle fermé et n'y ait aucun zéro.",
    ),
    "es": (
        "Queremos encontrar todos los enteros positivos que dividen ambos números sin dejar resto.",
        "Espera, creo que cometí un error en el segundo paso, así que voy a comprobarlo otra vez.",
        "Supongamos que la función es continua en el intervalo cerrado y no tiene ningún cero allí.",
    ),
    "it": (
        "Vogliamo trovare tutti gli interi positivi che dividono entrambi i numeri senza lasciare resto.",
        "Aspetta, penso di aver fatto un errore nel secondo passaggio, quindi lo controllo di nuovo.",
        "Supponiamo che la funzione sia continua sull'intervallo chiuso e che non abbia zeri.",
    ),
    "pt": (
        "Queremos encontrar todos os inteiros positivos que dividem os dois números sem deixar resto.",
        "Espere, acho que cometi um erro no segundo passo, então vou verificar outra vez.",
        "Suponha que a função seja contínua no intervalo fechado e não tenha nenhum zero ali.",
    ),
    "nl": (
        "We zoeken alle positieve gehele getallen die beide getallen zonder rest delen.",
        "Wacht, ik denk dat ik in de tweede stap een fout heb gemaakt, dus ik controleer het nog een keer.",
        "Stel dat de functie continu is op het gesloten interval en daar geen nulpunt heeft.",
    ),
    "pl": (
        "Chcemy znaleźć wszystkie dodatnie liczby całkowite, które dzielą obie liczby bez reszty.",
        "Chwila, chyba popełniłem błąd w drugim kroku, więc sprawdzę to jeszcze raz.",
        "Załóżmy, że funkcja jest ciągła na przedziale domkniętym i nie ma tam miejsca zerowego.",
    ),
    "tr": (
        "Her iki sayıyı da kalansız bölen tüm pozitif tam sayıları bulmak istiyoruz.",
        "Bir dakika, sanırım ikinci adımda bir hata yaptım, bu yüzden tekrar kontrol edeyim.",
        "Fonksiyonun kapalı aralıkta sürekli olduğunu ve orada hiç sıfırı olmadığını varsayalım.",
    ),
    "vi": (
        "Chúng ta muốn tìm tất cả các số nguyên dương chia hết cả hai số mà không có dư.",
        "Khoan đã, tôi nghĩ rằng tôi đã mắc lỗi ở bước thứ hai, vì vậy hãy kiểm tra lại.",
        "Giả sử hàm số liên tục trên đoạn đóng và không có nghiệm nào ở đó.",
    ),
    "id": (
        "Kita ingin mencari semua bilangan bulat positif yang membagi kedua bilangan tanpa sisa.",
        "Tunggu, saya rasa saya membuat kesalahan pada langkah kedua, jadi mari saya periksa lagi.",
        "Misalkan fungsi tersebut kontinu pada selang tertutup dan tidak memiliki nol di sana.",
    ),
    "sv": (
        "Vi vill hitta alla positiva heltal som delar båda talen utan rest.",
        "Vänta, jag tror att jag gjorde ett fel i det andra steget, så jag kontrollerar det en gång till.",
        "Antag att funktionen är kontinuerlig på det slutna intervallet och inte har något nollställe där.",
    ),
    "cs": (
        "Chceme najít všechna kladná celá čísla, která dělí obě čísla beze zbytku.",
        "Počkat, myslím, že jsem ve druhém kroku udělal chybu, takže to zkontroluji ještě jednou.",
        "Předpokládejme, že funkce je spojitá na uzavřeném intervalu a nemá tam žádný kořen.",
    ),
    "ru": (
        "Мы хотим найти все положительные целые числа, которые делят оба числа без остатка.",
        "Подождите, кажется, я ошибся на втором шаге, поэтому проверю ещё раз.",
        "Предположим, что функция непрерывна на отрезке и не имеет на нём нулей.",
    ),
    "uk": (
        "Ми хочемо знайти всі додатні цілі числа, які ділять обидва числа без остачі.",
        "Зачекайте, здається, я припустився помилки на другому кроці, тож перевірю ще раз.",
        "Припустімо, що функція неперервна на відрізку і не має на ньому нулів.",
    ),
    "el": (
        "Θέλουμε να βρούμε όλους τους θετικούς ακέραιους που διαιρούν και τους δύο αριθμούς χωρίς υπόλοιπο.",
        "Περίμενε, νομίζω ότι έκανα λάθος στο δεύτερο βήμα, οπότε θα το ελέγξω ξανά.",
        "Έστω ότι η συνάρτηση είναι συνεχής στο κλειστό διάστημα και δεν έχει ρίζα εκεί.",
    ),
    "zh": (
        "我们要找出所有能够同时整除这两个数的正整数。",
        "等等，我觉得第二步有错误，让我再检查一遍。",
        "假设函数在闭区间上连续，并且在那里没有零点。",
    ),
    "ja": (
        "両方の数を余りなく割り切るすべての正の整数を求めます。",
        "待ってください、二番目のステップで間違えたと思うので、もう一度確認します。",
        "関数は閉区間で連続であり、そこに零点を持たないと仮定します。",
    ),
    "ko": (
        "두 수를 나머지 없이 나누는 모든 양의 정수를 찾으려고 합니다.",
        "잠깐, 두 번째 단계에서 실수한 것 같으니 다시 확인해 보겠습니다.",
        "함수가 닫힌 구간에서 연속이고 그곳에서 영점을 갖지 않는다고 가정하자.",
    ),
    "ar": (
        "نريد أن نجد جميع الأعداد الصحيحة الموجبة التي تقسم كلا العددين دون باق.",
        "انتظر، أعتقد أنني ارتكبت خطأ في الخطوة الثانية، لذلك سأتحقق مرة أخرى.",
        "لنفترض أن الدالة متصلة على الفترة المغلقة وليس لها أصفار هناك.",
    ),
    "hi": (
        "हम वे सभी धनात्मक पूर्णांक ज्ञात करना चाहते हैं जो दोनों संख्याओं को बिना शेष के विभाजित करते हैं।",
        "रुको, मुझे लगता है कि दूसरे चरण में मुझसे गलती हो गई, इसलिए मैं फिर से जाँच करता हूँ।",
        "मान लीजिए कि फलन बंद अंतराल पर सतत है और वहाँ उसका कोई शून्य नहीं है।",
    ),
}
